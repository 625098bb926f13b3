-- PL/Python makes a list of an array before anybody can look at it: of a hundred million numbers in some seconds, without a look at interrupts, and of
-- 7 GB. A check of a domain stands in the expression of the call, and costs nothing measurable.

CREATE DOMAIN distill._numbers AS float8[] CONSTRAINT at_most_10000_features CHECK (pg_catalog.cardinality(VALUE) OPERATOR(pg_catalog.<=) 10000);
COMMENT ON DOMAIN distill._numbers IS 'internal: as many numbers as a model can have features';
CREATE DOMAIN distill._strings AS text[] CONSTRAINT at_most_10000_features CHECK (pg_catalog.cardinality(VALUE) OPERATOR(pg_catalog.<=) 10000);
COMMENT ON DOMAIN distill._strings IS 'internal: as many strings as a model can have features';
