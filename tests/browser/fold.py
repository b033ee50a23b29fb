"""What must hold on one screen, measured on the page: what ends where, what sticks out, what is too faint or too small.

``faults`` is asked of the outermost panel on the page, in any front end that playwright drives.
"""

from __future__ import annotations

from collections.abc import Iterable

from playwright.sync_api import Frame, Page

FOLD = 560
"""Pixels from the app's top within which a view's picture, controls and key figures end, where it is 940 px wide or more."""
CONTRAST = 4.5
"""The least ratio of the luminances of a text and its ground (WCAG 2.2, level AA)."""
TARGET = 20
"""Pixels that whatever is pressed measures at least, either way."""

_MEASURE = """([wanted, fold, contrast, target]) => {
  const outermost = (e) => !e.parentElement.closest('.wb-panel') && e.checkVisibility();
  const app = [...document.querySelectorAll('.wb-panel')].find(outermost);
  const frame = app.getBoundingClientRect(), faults = new Set();
  const named = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute('class') ?? ''} ${e.textContent.trim().slice(0, 30)}`;
  const shown = (e) => {
    const { width, height } = e.getBoundingClientRect();
    const visible = e.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    return visible && width > 1 && height > 1 && !e.closest('.wb-unseen, option');
  };
  const all = [...app.querySelectorAll('*')].filter(shown);

  for (const selector of wanted) {
    const found = all.filter((e) => e.matches(selector));
    if (!found.length) faults.add(`${selector} is not on the page`);
    for (const e of found) {
      const end = Math.round(e.getBoundingClientRect().bottom - frame.top);
      if (fold && end > fold) faults.add(`${selector} ends at ${end} px`);
    }
  }
  for (const e of all) {
    const out = e.getBoundingClientRect().right - frame.right;
    const scrolls = e.closest('.wb-scroll, [role=figure], [role=tablist]');
    if (out > 1 && !scrolls) faults.add(`sticks out by ${Math.round(out)} px: ${named(e)}`);
  }

  const pixel = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const painted = (colour, ground) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    return [r, g, b].map((value, i) => value * a / 255 + ground[i] * (1 - a / 255));
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const groundOf = (e) => (e ? painted(getComputedStyle(e).backgroundColor, groundOf(e.parentElement)) : [255, 255, 255]);
  for (const e of all) {
    const text = [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || e.closest('[disabled], [aria-disabled=true]')) continue;
    const style = getComputedStyle(e), ground = groundOf(e);
    const [a, b] = [painted(e.closest('svg') ? style.fill : style.color, ground), ground].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < contrast) faults.add(`contrast ${ratio.toFixed(1)}: ${named(e)}`);
  }

  for (const e of all.filter((e) => e.matches('button, select, input:not([type=range], [type=checkbox]), [role=button]'))) {
    const { width, height } = e.getBoundingClientRect();
    if (Math.min(width, height) < target) faults.add(`${Math.round(width)} × ${Math.round(height)} px to press: ${named(e)}`);
  }
  return [...faults];
}"""

_WIDTH = """() => [...document.querySelectorAll('.wb-panel')]
    .find((e) => !e.parentElement.closest('.wb-panel') && e.checkVisibility()).getBoundingClientRect().width"""


def faults(page: Page | Frame, wanted: Iterable[str]) -> list[str]:
    """What is wrong with the app as it is on screen; ``wanted`` are selectors of what must end above the fold.

    Where the app is narrower than 940 px they need only be there.
    """
    fold = FOLD if page.evaluate(_WIDTH) >= 940 else 0
    found: list[str] = page.evaluate(_MEASURE, [list(wanted), fold, CONTRAST, TARGET])
    return found
