"""Looks at a page in a real browser, the Chromium of Qt WebEngine, and prints what it sees as JSON. No test lives here.

A process of its own: python browser.py PAGE light|dark [FOLDER]; with a folder, screenshots go there.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from PySide6.QtCore import QEventLoop, Qt, QTimer, QUrl
from PySide6.QtTest import QTest
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

LOOK = """(() => {
  const all = [...document.body.querySelectorAll('*')].filter(e => {
    const box = e.getBoundingClientRect();
    const head = e.closest('thead');  // where rows are cards it is there for screen readers alone
    return box.width > 1 && box.height > 1 && (!head || head.getBoundingClientRect().width > 1);
  });
  const name = e => e.tagName + '.' + e.className + ': ' + (e.textContent || '').slice(0, 40);
  const width = document.documentElement.clientWidth;
  const light = c => {
    const part = c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
  };
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const contrasts = all.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
    const pair = [numbers(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light).sort((a, b) => b - a);
    return [(pair[0] + .05) / (pair[1] + .05), name(e)];
  });
  return JSON.stringify({
    width: window.innerWidth,
    sideways: document.documentElement.scrollWidth - width,
    outside: all.filter(e => { const b = e.getBoundingClientRect(); return b.right > width + 1 || b.left < -1 })
      .map(name),
    cut: all.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible').map(name),
    images: [...document.images].map(i => i.naturalWidth > 0),
    paper: numbers(getComputedStyle(document.body).backgroundColor),
    faint: contrasts.filter(c => c[0] < 4.5),
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
  });
})()"""

FOCUS = """(() => {
  const e = document.activeElement, s = getComputedStyle(e);
  return JSON.stringify([e.tagName, e.textContent.trim().slice(0, 60), s.outlineStyle, parseFloat(s.outlineWidth),
    e.tagName === 'SUMMARY' && e.parentElement.matches('details.section:not([open])')]);
})()"""


STATE = """[[...document.querySelectorAll('*')].indexOf(document.activeElement),
  ...[...document.querySelectorAll('details')].map(d => d.open)].join()"""
"""What a key changes: where the focus is, and what is open."""


class Browser:
    def __init__(self, page: Path) -> None:
        self.view = QWebEngineView()
        self.view.resize(1300, 900)
        self.view.show()
        done = QEventLoop()
        self.view.loadFinished.connect(lambda _ok: done.quit())
        self.view.load(QUrl.fromLocalFile(str(page.resolve())))
        done.exec()

    def ask(self, script: str) -> Any:
        found: list[Any] = []
        done = QEventLoop()
        self.view.page().runJavaScript(script, 0, lambda value: (found.append(value), done.quit()))
        done.exec()
        return found[0]

    def wait(self, ms: int) -> None:
        done = QEventLoop()
        QTimer.singleShot(ms, done.quit)
        done.exec()

    def look(self, width: int, shot: Path | None) -> Any:
        height = 900
        if shot:
            self.view.resize(width, height)
            self.wait(300)
            height = int(self.ask("document.documentElement.scrollHeight"))
        self.view.resize(width, height)
        self.wait(1500 if shot else 100)
        for _ in range(200):  # a busy machine takes its time
            if self.ask("window.innerWidth") == width:
                break
            self.wait(20)
        if shot:
            self.view.grab().save(str(shot))
        return json.loads(self.ask(LOOK))

    def press(self, key: Qt.Key) -> list[Any]:
        before = self.ask(STATE)
        QTest.keyClick(self.view.focusProxy() or self.view, key)
        for _ in range(100):  # a busy machine takes its time
            self.wait(20)
            if self.ask(STATE) != before:
                break
        return json.loads(self.ask(FOCUS))


def main(page: Path, scheme: str, shots: Path | None) -> None:
    # Read when Qt and its Chromium start, which is later than their import.
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    prefers = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = f"--no-sandbox --disable-gpu --disable-background-networking {prefers}"
    _app = QApplication(sys.argv)
    QTimer.singleShot(240_000, lambda: os._exit(3))  # a browser that hangs
    browser = Browser(page)
    shown = "JSON.stringify([...document.querySelectorAll('details.section')].map(d => d.open))"
    seen: dict[str, Any] = {"open": json.loads(browser.ask(shown)), "stops": []}
    browser.view.setFocus()
    while len(seen["stops"]) < 40:  # to the second section, which is closed, and into it
        seen["stops"].append(browser.press(Qt.Key.Key_Tab))
        if seen["stops"][-1][4]:
            break
    browser.press(Qt.Key.Key_Space)
    seen["opened"] = json.loads(browser.ask(shown))
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    for width in (1300, 768, 390):
        seen[str(width)] = browser.look(width, shots and shots / f"{page.stem}-{width}-{scheme}.png")
    print(json.dumps(seen))
    sys.stdout.flush()
    os._exit(0)  # Qt's own way out may hang where there is no display


main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
