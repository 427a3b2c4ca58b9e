"""Pure decisions: which rule, which route, which backend. Time and state are arguments."""
