"""What the README shows runs."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_example_copies_its_sources(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 13
    exec(compile(code, "README.md", "exec"), {})
    assert "1.0" in capsys.readouterr().out
