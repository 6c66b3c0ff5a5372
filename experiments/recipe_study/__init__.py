"""Does the recipe teach facts and leave the rest alone? Chosen on some facts and texts, reported on others."""
