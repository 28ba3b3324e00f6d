"""Everything outside: traces, stores and feeds."""
