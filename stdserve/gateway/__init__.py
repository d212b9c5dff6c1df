"""The application's side: turns an Exchange into a call of a WSGI or ASGI application."""
