"A bucket and a web server on 127.0.0.1, which can be slow, fail now and then, or deny, and count what they send"
import logging, random, threading, time
from contextlib import contextmanager
from pathlib import Path
from wsgiref.util import FileWrapper

from werkzeug.serving import make_server

logging.getLogger('werkzeug').setLevel(logging.ERROR)

class Moody:
    "A WSGI application that may be slow, fail or deny, and is counted"
    def __init__(self, app):
        self.app,self.lock = app,threading.Lock()
        self.calm()

    def calm(self):
        self.latency,self.failing,self.denied = 0.,0.,() # seconds a call; share of calls; methods
        self.rng,self.calls,self.sent,self.at_once,self.most = random.Random(0),[],0,0,0

    def __call__(self, environ, start_response):
        call = environ['REQUEST_METHOD'],environ['PATH_INFO'],environ.get('HTTP_RANGE')
        with self.lock:
            self.calls.append(call)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            fails = self.rng.random()<self.failing
        try:
            time.sleep(self.latency)
            if call[0] in self.denied: return _error(environ, start_response, '403 Forbidden', 'AccessDenied', 'Access Denied')
            if fails: return _error(environ, start_response, '503 Slow Down', 'SlowDown', 'Please reduce your request rate')
            return self._counted(self.app(environ, start_response), call)
        finally:
            with self.lock: self.at_once -= 1

    def _counted(self, parts, call):
        for part in parts:
            if call[0]=='GET':
                with self.lock: self.sent += len(part)
            yield part

def _error(environ, start_response, status, code, message):
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    start_response(status, [('Content-Type', 'application/xml'), ('Content-Length', str(len(body)))])
    return [] if environ['REQUEST_METHOD']=='HEAD' else [body]

def files_of(root):
    "A WSGI application that hands out the files of a folder, whole or a range of bytes"
    def app(environ, start_response):
        path = Path(root)/environ['PATH_INFO'].lstrip('/')
        if not path.is_file(): return _error(environ, start_response, '404 Not Found', 'NotFound', 'not found')
        size,asked = path.stat().st_size,environ.get('HTTP_RANGE')
        first,_,last = (asked or 'bytes=0-').removeprefix('bytes=').partition('-')
        first,stop = int(first),min(int(last or size-1), size-1)+1
        head = [('Content-Length', str(stop-first)), ('Accept-Ranges', 'bytes')]
        if asked: head.append(('Content-Range', f'bytes {first}-{stop-1}/{size}'))
        start_response('206 Partial Content' if asked else '200 OK', head)
        if environ['REQUEST_METHOD']=='HEAD': return []
        f = open(path, 'rb')
        f.seek(first)
        return _Part(f, stop-first)
    return app

class _Part(FileWrapper):
    "So many bytes of an open file"
    def __init__(self, f, left):
        super().__init__(f, 2**20)
        self.left = left
    def __next__(self):
        data = self.filelike.read(min(self.blksize, self.left))
        self.left -= len(data)
        if data: return data
        self.filelike.close()
        raise StopIteration

@contextmanager
def served(app):
    "URL of an application while it is served, and the application with its moods"
    moody = Moody(app)
    server = make_server('127.0.0.1', 0, moody, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}',moody
    finally: server.shutdown()

def bucket_app():
    "A WSGI application that is an S3"
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    return DomainDispatcherApplication(create_backend_app)
