"""The formats that come with Shoal, each a module behind an entry point of `shoal.formats`."""
