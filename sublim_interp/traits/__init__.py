"""What a teacher is given and a student is asked about: one protocol, and what fulfils it. Nothing is trained here."""
