-- PUBLIC gets nothing: these functions run code and read models. extension/doc/grants.sql has the GRANTs for each kind of user.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA distill FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.distill_model(text, float8, float8, float8, int, bigint, text, text, text, int, float8, text, text[], text, text, text, text, text, text[], int, boolean, jsonb) FROM PUBLIC;
