#: tries = "bytes that are no text: NUL, broken UTF-8, escape sequences that would rule a terminal"
#: stdout = ".*\\\\xff\\\\xfe.*"
import os

os.write(1, b"\x00\xff\xfe\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80\x1b]0;title\x07\x1b[2J\x1bP\x9b31m\r\b")
