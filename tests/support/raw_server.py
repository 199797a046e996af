"""TCP server that answers every connection with given bytes, whatever it is asked."""

import socket
import threading
import time


class RawServer:
    """Server whose answers need not be HTTP.

    Attributes:
        answers: one for each of the next connections, the last one for all further ones: bytes, or
            a function that yields pieces to send.
        connections: number of connections so far.
    """

    def __init__(self, *answers):
        self.answers, self.connections = list(answers), 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join(5)

    def serve(self):
        while not self.closing.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            answer = self.answers[min(self.connections, len(self.answers) - 1)]
            self.connections += 1
            with connection:
                self.send(connection, answer)

    def send(self, connection, answer):
        """Read the request and send the answer, until the client has had enough."""
        try:
            connection.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            for piece in answer() if callable(answer) else [answer]:
                if self.closing.is_set():
                    return
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.1)  # a client may keep what it has refused
            connection.recv(65536)
        except OSError:
            return


def response(body, *headers, status="200 OK"):
    """Return the bytes of a response with a right length unless `headers` name one."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    if not any(line.lower().startswith(("content-length", "transfer")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def trickle(opening, piece, pause):
    """Return a function that yields `opening`, and then `piece` for ever."""

    def pieces():
        yield opening
        while True:
            yield piece
            time.sleep(pause)

    return pieces
