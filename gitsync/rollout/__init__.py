"""From a plan to pods that serve, or back: dry run, apply, wait, prune, restore.

Owns every write to a user's objects. Decides nothing about what should exist (that is ``plan``), keeps no state of its
own (that is the Record), deletes only what carries a UID that was recorded, and never touches another Application's.
"""
