"""What a trained model is worth, in numbers: clips, measures of them beside measures of real sound, and a report."""
