"""Draws docs/unit.png for the README: python docs/picture.py INDEX UNIT, with chromium and playwright."""

from __future__ import annotations

import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

index, unit = sys.argv[1:]
command = [sys.executable, "-m", "indexer", "serve", index, "--no-browser"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
    assert server.stdout is not None
    address = server.stdout.readline().split("?")[0]
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1240, "height": 680})
    page.goto(f"{address}#/u/{unit}")
    page.wait_for_selector(".example")
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    # a palette makes the file a third as large
    picture.quantize(96).save(Path(__file__).with_name("unit.png"), optimize=True)
    browser.close()
    server.terminate()
