"""Adapter methods, one file each: typed settings and a function from them to a PEFT configuration."""
