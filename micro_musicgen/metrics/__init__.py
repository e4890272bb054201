"""Numbers that say how good codes and sounds are."""
