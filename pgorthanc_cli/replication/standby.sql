-- A standby: its receiver, its primary, what it has received, the age of its data, cancelled queries.
SELECT CASE WHEN r.pid IS NULL THEN 'none' ELSE coalesce(r.status, 'running') END,
       r.sender_host || ':' || r.sender_port,
       pg_last_wal_receive_lsn() - '0/0'::pg_lsn,
       CASE WHEN r.pid IS NOT NULL
                 AND coalesce(pg_last_wal_receive_lsn(), '0/0') <= pg_last_wal_replay_lsn() THEN 0
            ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END::float,
       pg_last_xact_replay_timestamp(), pg_is_wal_replay_paused(),
       (SELECT sum(confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock)::bigint
        FROM pg_stat_database_conflicts),
       current_setting('hot_standby_feedback')
FROM (SELECT) AS here LEFT JOIN pg_stat_wal_receiver r ON true
