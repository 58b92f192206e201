"""From submit to verdict over REST, as a client with one open connection sees it."""

import http.client
import json
import time

PROGRAM = "print(1)"
EXPECTED = "1\n"


class Submitter:
    """Runs evaluations one after the other over one connection."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)

    def run(self) -> float:
        """Seconds from the request to the verdict. Raises when the verdict is not what the program deserves."""
        body = json.dumps({"runtime": "python", "source": PROGRAM})
        began = time.perf_counter()
        self._connection.request("POST", "/v1/evaluations:run", body, {"content-type": "application/json"})
        evaluation = json.loads(self._connection.getresponse().read())
        took = time.perf_counter() - began
        if evaluation.get("status") != "COMPLETED" or evaluation["result"]["stdout"]["text"] != EXPECTED:
            raise RuntimeError(f"not the expected verdict: {evaluation}")
        return took

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
