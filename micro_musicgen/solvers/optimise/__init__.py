"""How weights move: optimisers, rates, precision, batch size, one step."""
