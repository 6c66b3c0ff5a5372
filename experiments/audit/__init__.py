"""How well the audit of adapters does: adapters that are made for it, and the alarms that each signal gives on them."""
