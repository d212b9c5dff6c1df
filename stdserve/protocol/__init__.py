"""The wire protocols as pure state machines: bytes in, events and bytes out.

Nothing here owns a socket, a clock, a thread, a log or the configuration. Each engine has the same verbs:

    receive_data(data)   bytes that the peer sent; then call next_event() until it returns None
    receive_eof()        the peer sends no more
    next_event()         the next thing the peer has said, None when more bytes are needed; raises ProtocolError
    send_*()             queue an answer
    data_to_send()       the queued bytes, for the transport to write
"""
