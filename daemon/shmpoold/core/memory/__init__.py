"""The pool's memory: what is warm, granted or spare, the cap over all of it, and what is cooled."""
