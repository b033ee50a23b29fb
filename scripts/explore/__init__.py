"""The explorable page: ``docs/explore.html``, made by ``python -m scripts.explore.page``."""
