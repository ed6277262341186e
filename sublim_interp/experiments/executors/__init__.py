"""Where records are made: worker processes of this machine, or jobs that go on without the command that began them."""
