"""What each method of peft gives on the same facts in equal steps, and the learning rate that each was given."""
