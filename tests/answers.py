"Answers of language models as servers send them, odd in one way each, and a server that sends them"
import gzip, json, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

api_key = 'sk-test-0123456789'

def completion(content, finish='stop', usage=None, **message):
    body = dict(choices=[dict(message=dict(role='assistant', content=content, **message), finish_reason=finish)])
    return json.dumps(body if usage is None else body|dict(usage=usage)).encode()

def odd_answers(good):
    "Name -> (status of the answer, body and headers), for a question that `good` answers"
    as_list = [dict(type='text', text=good[:9]), dict(type='text', text=good[9:])]
    thinking = [dict(type='thinking', thinking='{"pattern": "draft", "score": 0, "second": 0}'), dict(type='text', text=good)]
    draft = '{"pattern": "draft", "score": 0, "second": 0, "notes": []}'
    pack,zipped = gzip.compress,{'Content-Encoding': 'gzip'}
    with_notes = lambda notes: good[:-1]+f', "notes": {notes}}}' # good is an object
    return {
        'content in parts': ('ok', completion(as_list)), 'thinking in parts': ('ok', completion(thinking)), 'an object as content': ('ok', completion(as_list[0]|dict(text=good))),
        'marked thinking': ('ok', completion(f'<think>Perhaps {draft}</think>{good}')), 'thinking without a beginning': ('ok', completion(f'Perhaps {draft}\n</think>\n{good}')),
        'thinking in prose': ('ok', completion(f'For instance {draft} would do. My answer: {good}')), 'packed': ('ok', pack(completion(good)), zipped),
        'usage is text': ('ok', completion(good, usage='many')), 'usage is negative': ('ok', completion(good, usage=dict(prompt_tokens=-10**9, completion_tokens=float('nan')))),
        'halves around': ('ok', completion(f'\ud800{good}\udc00')),
        'content null': ('parse_error', completion(None)), 'a tool is called': ('parse_error', completion(None, tool_calls=[dict(function=dict(name='look'))])),
        'prose': ('parse_error', completion('It is red.')), 'thinking without an end': ('parse_error', completion(f'<think>Perhaps {draft}', 'length')), 'cut off': ('parse_error', completion(f'{draft} or {good[:-4]}', 'length')),
        'NaN in notes': ('parse_error', completion(with_notes('[NaN]'))), 'infinity in notes': ('parse_error', completion(with_notes('1e999'))), 'half a pair': ('parse_error', completion(with_notes(r'"\ud800"'))),
        'deep notes': ('parse_error', completion(with_notes('['*500+']'*500))), 'deep JSON': ('parse_error', completion('{"pattern": '+'['*5000)), 'a long number': ('parse_error', completion(with_notes('1'*5000))), 'a long text': ('parse_error', completion(good+' '*150_000)),
        'content is a number': ('error', completion(7)), 'message null': ('error', b'{"choices": [{"message": null}]}'), 'no choices': ('error', b'{"choices": []}'),
        'an error with status 200': ('error', b'{"error": {"message": "loading"}}'), 'deep body': ('error', b'{"choices": '+b'['*100_000), 'no JSON': ('error', b'<html>Bad gateway</html>'), 'no UTF-8': ('error', completion(good).replace(b'pattern', b'p\xff')+b'\xff'),
        'a key in an error': ('error', f'{{"error": "{"x"*270} Bearer {api_key}"}}'.encode()), 'a key in an answer': ('parse_error', completion(f'Bearer {api_key}')),
        'drip': ('error', 'drip'), 'no end': ('error', 'no end'), 'unpacks to 100 MB': ('error', pack(b'0'*10**8), zipped)}

class AnswerServer:
    "Sends what `say`, a function of the number and the body of a request, returns: a body, with headers or without"
    def __init__(self, say):
        self.say,self.asked,lock = say,0,threading.Lock()
        outer = self
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args): pass
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                with lock: n,outer.asked = outer.asked,outer.asked+1
                what,*headers = outer.say(n, request)
                try:
                    self.send_response(200)
                    for k,v in (headers[0] if headers else {}).items(): self.send_header(k, v)
                    self.end_headers()
                    if isinstance(what, bytes): self.wfile.write(what)
                    else:
                        while True:
                            self.wfile.write(b' '*(1 if what=='drip' else 2**16))
                            if what=='drip': time.sleep(.05)
                except (BrokenPipeError, ConnectionResetError): pass # the client has enough
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.http.server_port}/v1'

    def __enter__(self): return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
