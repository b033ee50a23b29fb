"""The widget manager's switch: anywidget turns it on when it is first imported."""

from google.colab.output import _widgets


def enable_custom_widget_manager(version: str = "5.0.0a") -> None:
    """Widgets that are shown from now on name the manager's address."""
    _widgets.name_manager("https://manager.test/manager.js")


def disable_custom_widget_manager() -> None:
    """They name none."""
    _widgets.name_manager("")
