"""The official npm client: the cases of chat.cjs, under Node's own test runner."""

import os
import pathlib
import subprocess

# Six short cases; a hang is a failure and not a stuck suite.
TIMEOUT_S = 180


def test_the_npm_client_passes_its_cases():
    script = pathlib.Path(__file__).with_name("chat.cjs")
    run = subprocess.run(
        [os.environ["TOLLWAY_NODE"], "--test", "--test-reporter=spec", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0, "chat.cjs failed; see its output"
    # Node calls a run without a case a success.
    assert "pass 6" in run.stdout
