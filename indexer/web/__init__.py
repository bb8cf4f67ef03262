"""An index in a browser: a page for every unit, and text that is edited while its units are watched."""
