"""Data sets as clips: one script each, all with the verbs cut, annotate, check, manifest and prepare (see `verbs`)."""
