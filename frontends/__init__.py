"""Front ends: the only part of tileir that imports a framework."""
