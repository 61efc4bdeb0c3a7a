"""The commands: parse, call the core, hand to a report. One file a command; only here is anything printed."""
