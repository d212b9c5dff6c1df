"""Every regular expression of HTTP/1.1 and of the WebSocket handshake, each under the ABNF rule it implements.

RFC 9110, 9112, 3986, 6455.

All are bytes patterns: a str pattern would match digits and letters beyond ASCII. All quantifiers are possessive or
bounded, so no input makes them slower than linear. Nothing is matched in part: callers use `fullmatch`, or `match`
where the pattern itself ends in CRLF.
"""

from __future__ import annotations

import re

# token = 1*tchar                                                                        RFC 9110 5.6.2
# tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" / "|" / "~" / DIGIT / ALPHA
TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TOKEN = re.compile(TCHAR + rb"++")

# request-line = method SP request-target SP HTTP-version                                RFC 9112 3
# method = token; in upper case only: the methods in use are, methods are case-sensitive, and what differs from GET by
# its case alone is a method that the peer in front may have taken for GET.
# request-target: visible ASCII without "#", the union of the four forms (RFC 9112 3.2); the form is checked apart.
# HTTP-version = "HTTP/" DIGIT "." DIGIT
REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Z]++) ([!\"$-~]++) HTTP/([0-9])\.([0-9])")

# The start of a request line whose end has not arrived: a method, and what may follow it. Anything else will not become
# a request line whatever comes.
REQUEST_LINE_START = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]++(?: |\Z)")
VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")

# field-line = field-name ":" OWS field-value OWS                                        RFC 9112 5
# field-value = *( VCHAR / obs-text / SP / HTAB ); group 2 keeps trailing blanks         RFC 9110 5.5
FIELD_LINE = re.compile(rb"(" + TCHAR + rb"++):[ \t]*+([\t -~\x80-\xff]*+)")

# field-value alone, for fields that an application gives
FIELD_VALUE = re.compile(rb"[\t -~\x80-\xff]*+")

# Content-Length = 1*DIGIT; 19 digits hold every 63-bit number                           RFC 9110 8.6
LENGTH = re.compile(rb"[0-9]{1,19}")
DIGITS = re.compile(rb"[0-9]++")

# Host = uri-host [ ":" port ]                                                           RFC 9110 7.2
# uri-host = IP-literal / IPv4address / reg-name                                         RFC 3986 3.2.2
# IP-literal = "[" ( IPv6address / IPvFuture ) "]"; the digits of an IPv6 address are not counted here
# reg-name = *( unreserved / pct-encoded / sub-delims )
HOST = re.compile(
    rb"(?:\[(?:[0-9A-Fa-f:.]++|[vV][0-9A-Fa-f]++\.[0-9A-Za-z\-._~!$&'()*+,;=:]++)\]"
    rb"|(?:[0-9A-Za-z\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*+)"
    rb"(?::[0-9]*+)?+"
)

# absolute-form = absolute-URI, of the schemes we serve: authority, then path and query  RFC 9112 3.2.2
ABSOLUTE_FORM = re.compile(rb"[hH][tT][tT][pP][sS]?+://([^/?]*+)(.*+)")

# chunk-size [ chunk-ext ] CRLF; 16 hexadecimal digits hold every 64-bit size            RFC 9112 7.1
# chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )              RFC 9112 7.1.1
# chunk-ext-val = token / quoted-string                                                  RFC 9110 5.6.4
CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"((?:[ \t]*+;[ \t]*+" + TCHAR + rb"++(?:[ \t]*+=[ \t]*+"
    rb"(?:" + TCHAR + rb"++|\"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+\"))?+)*+)"
)

# A LF that no CR precedes. RFC 9112 2.2 allows to take it for a line end; two parsers that disagree about it disagree
# about where a request ends, so it is refused.
BARE_LF = re.compile(rb"(?<!\r)\n")

# What an answer's reason phrase may hold                                                RFC 9112 4
REASON = FIELD_VALUE

# Sec-WebSocket-Key = base64-value-non-empty, of 16 bytes. The four bits of its last letter that are no part of the 16
# bytes are not looked at: the key is hashed as it stands, nobody decodes it.               RFC 6455 4.3, 4.2.1 (5)
WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")

# extension-param = token [ "=" (token | quoted-string) ]                                   RFC 6455 9.1
# The text of the quoted-string, unescaped, is a token too; so no comma or semicolon can be in it.
EXTENSION_PARAM = re.compile(
    rb"(" + TCHAR + rb"++)(?:[ \t]*+=[ \t]*+(?:(" + TCHAR + rb"++)|\"((?:\\?+" + TCHAR + rb")++)\"))?+"
)
