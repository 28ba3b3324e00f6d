"""The twin: a compiled event loop over arrays; failures and power caps are events on the same line."""
