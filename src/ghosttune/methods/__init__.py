"""Adapter methods, one file each: typed settings and a function from them to a PEFT configuration.

In reading order: targets, lora, relatives, products, rotations, bases, prompts, direct, budget.
"""
