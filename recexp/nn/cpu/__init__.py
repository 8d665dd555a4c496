"""Operations written by hand because they are faster on CPUs than what torch offers."""
