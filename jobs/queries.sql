-- Ready queries over the views of views.sql (results, recount_plan, summary, counted): committed nights only.
-- They run as they are in DuckDB, and one by one in Polars (SQLContext), Athena and Spark.
-- Negative variance is a shortage, and p_record_wrong is the probability that a record is wrong.

-- name: top_suspects
-- The last night's most doubtful bins.
SELECT
  r.audit_date, r.rank, r.bin_id, r.zone, r.sku, r.num_skus, r.expected_qty, r.camera_qty, r.qty_low, r.qty_high,
  r.likely_qty, r.p_record_wrong, r.p_short, r.p_over, r.expected_variance_qty, r.value_at_risk, r.verdict, r.recount
FROM results AS r
JOIN (SELECT MAX(audit_date) AS audit_date FROM summary WHERE scope = 'all') AS latest
  ON r.audit_date = latest.audit_date
WHERE r.verdict IN ('suspect', 'certified')
ORDER BY r.p_record_wrong DESC, r.bin_id
LIMIT 100;

-- name: accuracy_trend
-- Record accuracy by night with its 95 % interval, and null where no random recounts allow a claim.
SELECT
  audit_date, num_bins, coverage, ira, 1 - error_rate_high AS ira_low, 1 - error_rate_low AS ira_high,
  num_random_window, estimator, record_model, list_precision_window, naive_precision_window,
  record_outside_set_share, drift_alarm
FROM summary
WHERE scope = 'all'
ORDER BY audit_date;

-- name: repeat_offenders
-- Bins found wrong at least twice. A mismatch counts once a second blind count confirmed it, and of several counts of one
-- bin for one night the last one holds.
WITH last_counts AS (
  SELECT run_id, bin_id, MAX(counted_at) AS counted_at
  FROM counted
  GROUP BY run_id, bin_id
),
resolved AS (
  SELECT
    c.bin_id, c.counted_at,
    CASE WHEN c.counted_qty <> c.expected_qty THEN 1 ELSE 0 END AS wrong,
    c.counted_qty - c.expected_qty AS variance_qty
  FROM counted AS c
  JOIN last_counts AS l ON c.run_id = l.run_id AND c.bin_id = l.bin_id AND c.counted_at = l.counted_at
  WHERE c.counted_qty = c.expected_qty OR c.confirmed
)
SELECT
  bin_id, COUNT(*) AS num_counted, SUM(wrong) AS num_wrong, SUM(variance_qty) AS net_variance_qty,
  MAX(counted_at) AS last_counted_at
FROM resolved
GROUP BY bin_id
HAVING SUM(wrong) >= 2
ORDER BY num_wrong DESC, bin_id;

-- name: shortage_by_sku
-- The last night's expected shortage by SKU. The camera gives a bin's total, so only bins of one SKU say which SKU is
-- short, and mixed bins stand as 'SKU unknown'. coverage: assessed bins over bins, and share_of_units: of all recorded units.
WITH night AS (
  SELECT
    CASE WHEN r.num_skus = 1 THEN r.sku WHEN r.num_skus = 0 THEN 'no SKU recorded' ELSE 'SKU unknown' END AS sku,
    r.expected_qty,
    CASE WHEN r.verdict = 'not_assessed' THEN 0 ELSE 1 END AS assessed,
    CASE WHEN r.verdict = 'not_assessed' THEN 0 ELSE r.expected_variance_qty END AS variance_qty,
    CASE WHEN r.verdict = 'not_assessed' THEN 0 ELSE r.expected_variance_qty * r.unit_value END AS variance_value
  FROM results AS r
  JOIN (SELECT MAX(audit_date) AS audit_date FROM summary WHERE scope = 'all') AS latest
    ON r.audit_date = latest.audit_date
),
total AS (
  SELECT SUM(expected_qty) AS units FROM night
)
SELECT
  n.sku, COUNT(*) AS num_bins, AVG(n.assessed) AS coverage, SUM(n.expected_qty) AS recorded_units,
  CAST(SUM(n.expected_qty) AS DOUBLE) / MAX(t.units) AS share_of_units,
  -SUM(CASE WHEN n.variance_qty < 0 THEN n.variance_qty ELSE 0 END) AS shortage_units,
  -SUM(CASE WHEN n.variance_value < 0 THEN n.variance_value ELSE 0 END) AS shortage_value,
  SUM(n.variance_qty) AS net_variance_units
FROM night AS n
CROSS JOIN total AS t
GROUP BY n.sku
ORDER BY shortage_units DESC, n.sku;

-- name: worst_zones
-- The last night's zones by value at risk.
SELECT
  s.audit_date, s.scope_value AS zone, s.num_bins, s.coverage, s.num_suspect,
  CASE WHEN s.num_assessed > 0 THEN CAST(s.num_suspect AS DOUBLE) / s.num_assessed END AS suspect_share,
  s.value_at_risk, s.shortage_value, s.overage_value, s.record_outside_set_share
FROM summary AS s
JOIN (SELECT MAX(audit_date) AS audit_date FROM summary WHERE scope = 'all') AS latest
  ON s.audit_date = latest.audit_date
WHERE s.scope = 'zone'
ORDER BY s.value_at_risk DESC, s.scope_value;
