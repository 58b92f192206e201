#: tries = "finding the starter in its own memory"
#: stdout = "nothing\n"
import gc
import sys
import types

words = ("crucible", "starter", "CHANNEL")
found = [name for name in sys.modules if any(word in name for word in words)]
for each in gc.get_objects():
    if isinstance(each, types.FunctionType) and any(word in each.__code__.co_filename for word in words):
        found.append(each)
    if isinstance(each, dict) and "CHANNEL" in each and each is not globals():
        found.append(each)
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
    found.append(frame)
print(found or "nothing")
