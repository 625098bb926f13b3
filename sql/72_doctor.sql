-- For `pg-distill init`, which shows it to whoever sets a server up: no version is refused here, and nothing is read but settings.
CREATE FUNCTION distill._check_server(OUT "check" text, OUT fault text, OUT found text, OUT advice text)
RETURNS SETOF record LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.check_server(plpy)
$$;
COMMENT ON FUNCTION distill._check_server() IS
    'internal: what is wrong with this server, from the module''s version to the training process, which is started as for a distillation';
