"""`baseload calibrate`: what a user's measurements may become."""

from __future__ import annotations

import pytest

from baseload.app.calibrate import calibrate_file
from baseload.errors import InputError


def test_faster_than_the_data_sheet_is_not_written(tmp_path):
    """Efficiencies above 1 are told on the screen, and never written for a fleet file."""
    rows = [f"{n},256,{users},{ttft},{tpot}" for n, users, ttft, tpot in
            [(512, 1, 3, 0.9), (512, 8, 9, 1.0), (2048, 16, 30, 1.2), (2048, 64, 90, 2.0)]]  # fmt: skip
    path, out = tmp_path / "m.csv", tmp_path / "speed.yaml"
    path.write_text("\n".join(["input_tokens,output_tokens,concurrency,ttft_ms,tpot_ms", *rows]) + "\n", "utf-8")

    said = calibrate_file(path, accelerator="h100-sxm", model="llama-3.1-8b")
    assert "Warning: memory_efficiency" in said and "faster than the data sheet" in said
    with pytest.raises(InputError, match="check tp, precision, units"):
        calibrate_file(path, accelerator="h100-sxm", model="llama-3.1-8b", out=out)
    assert not out.exists()
