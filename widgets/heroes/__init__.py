"""The notebooks' first screens: each one picture of real numbers with one thing to drag, drawn and computed by the page."""
