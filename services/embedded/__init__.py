"""Everything on one machine: `shoal up`, its trace collector, and the demo."""
