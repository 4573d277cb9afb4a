"""What every layer shares: request types, errors, names and the frame codec. Standard library and numpy only."""
