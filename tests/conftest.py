"""What the Python suites share: the running Tollway that TOLLWAY_QUICKSTART describes, and clients for it.

`tests/support/with-tollway` starts one and sets the variable; any other running `tollway up` will do as well.
"""

import json
import os
import urllib.request
from dataclasses import dataclass

import openai
import pytest

# No retries: an error must reach the test as it was answered.
RETRIES = 0
# A real model on one loaded core is slow; everything else answers within milliseconds.
TIMEOUT_S = 120


@dataclass(frozen=True)
class Quickstart:
    """The fields of quickstart.json."""

    api_url: str
    admin_url: str
    api_key: str
    admin_key: str
    model: str
    data_dir: str

    @property
    def base_url(self) -> str:
        """The address in the form that the clients want: with the version."""
        url = self.api_url.rstrip("/")
        return url if url.endswith("/v1") else url + "/v1"

    def client(self, api_key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.base_url, api_key=api_key or self.api_key, max_retries=RETRIES, timeout=TIMEOUT_S
        )

    def admin_get(self, path: str):
        """The JSON answer of the admin API to a GET."""
        return self.admin_send("GET", path)

    def admin_send(self, method: str, path: str, body=None):
        """The JSON answer of the admin API."""
        return self._send(method, self.admin_url.rstrip("/") + path, self.admin_key, body)

    def post(self, api_key: str, path: str, body):
        """The JSON answer of the public API to a POST."""
        return self._send("POST", self.base_url + path, api_key, body)

    def _send(self, method: str, url: str, key: str, body):
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        # No proxy of the environment may stand between a test and loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def quickstart() -> Quickstart:
    path = os.environ.get("TOLLWAY_QUICKSTART")
    if not path:
        pytest.fail("TOLLWAY_QUICKSTART is not set; run this by `tests/run sdk` or `tests/run real-model`")
    with open(path, encoding="utf-8") as file:
        fields = json.load(file)
    return Quickstart(**{name: fields[name] for name in Quickstart.__dataclass_fields__})


@pytest.fixture(scope="session")
def client(quickstart: Quickstart) -> openai.OpenAI:
    return quickstart.client()
