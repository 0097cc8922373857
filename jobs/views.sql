-- The committed nights, and nothing else: a night is committed by its summary, which names the run that made it.
-- A bare glob over results/ also sees the parts of a run that has not committed: while it writes them, after a crash until
-- the same command has gone on, and with --replace beside those of the run that it replaces. These views never do.
-- DuckDB runs this file as it is; for Athena and Spark take the same SELECTs over tables from `python -m schemas.ddl`.

CREATE OR REPLACE VIEW summary AS
SELECT * FROM read_parquet('{output_uri}/summary/*/*.parquet', hive_partitioning = true, union_by_name = true);

CREATE OR REPLACE VIEW committed AS
SELECT audit_date, run_id FROM summary WHERE scope = 'all';

CREATE OR REPLACE VIEW results AS
SELECT r.*
FROM read_parquet('{output_uri}/results/*/*.parquet', hive_partitioning = true, union_by_name = true) AS r
JOIN committed USING (audit_date, run_id);

-- What people counted, of every plan that was ever committed. Its files hold the night as text; of
-- the others the folder's name is a date.
CREATE OR REPLACE VIEW counted AS
SELECT * REPLACE (CAST(audit_date AS DATE) AS audit_date)
FROM read_parquet('{output_uri}/counted/*.parquet', union_by_name = true);

CREATE OR REPLACE VIEW recount_plan AS
SELECT p.*
FROM read_parquet('{output_uri}/recount_plan/*/*.parquet', hive_partitioning = true, union_by_name = true) AS p
JOIN committed USING (audit_date, run_id);
