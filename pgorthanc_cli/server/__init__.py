"""PostgreSQL servers on this machine: programs, data folders, pg_hba.conf."""
