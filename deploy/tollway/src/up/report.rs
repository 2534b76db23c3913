//! What `tollway up` says on the terminal.

use tollway_proto::usage::UsageSource;

use super::first_request::Recorded;
use super::quickstart::{self, Quickstart};
use crate::output::say;

/// The cost of the first request and where its event is.
pub(crate) fn cost(recorded: &Recorded) {
    let event = &recorded.event;
    let counted = match event.usage_source {
        UsageSource::Provider => "counted by the provider",
        UsageSource::Estimated => "estimated, the provider reported none",
        UsageSource::None => "nothing was used",
    };
    say!();
    say!(
        "cost     ${} for {} prompt and {} completion tokens ({counted}) by {}",
        event.charge.total,
        event.tokens.prompt(),
        event.tokens.completion(),
        event.endpoint
    );
    say!(
        "         at ${} and ${} per million tokens, price version {}",
        event.prices.input,
        event.prices.output,
        event.price_version
    );
    say!("event    {} in {}", event.id, recorded.file.display());
    say!(
        "         at byte {} (partition {}, sequence {})",
        recorded.offset,
        event.partition,
        event.sequence
    );
}

/// Addresses, keys and what to try.
pub(crate) fn ready(quickstart: &Quickstart, ops_url: &str) {
    let Quickstart {
        api_url,
        admin_url,
        api_key,
        admin_key,
        model,
        data_dir,
    } = quickstart;
    let default = *data_dir == absolute(&quickstart::default_data_dir());
    // This very file: nobody has put it into the PATH.
    let tollway = std::env::current_exe().map_or_else(|_| "tollway".to_owned(), |path| quoted(&path));
    let usage = if default {
        format!("{tollway} usage --group-by model")
    } else {
        format!("{tollway} --url {admin_url} --key {admin_key} usage --group-by model")
    };
    say!(
        "
public API   {api_url}
API key      {api_key}
admin API    {admin_url}
admin key    {admin_key}
health       {ops_url}/readyz, {ops_url}/metrics
data         {data} (all of the above is in {file})

Try:

  curl {api_url}/chat/completions -H 'Authorization: Bearer {api_key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{\"model\": \"{model}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'

  python3 - <<'PY'      # needs: pip install openai
from openai import OpenAI
client = OpenAI(base_url=\"{api_url}\", api_key=\"{api_key}\")
answer = client.chat.completions.create(model=\"{model}\", messages=[{{\"role\": \"user\", \"content\": \"Hello!\"}}])
print(answer.choices[0].message.content)
PY

  {usage}

Serving until Ctrl-C.",
        data = data_dir.display(),
        file = quickstart::FILE,
    );
}

/// A path as a shell reads it.
fn quoted(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The path from the root, so that it means the same in every folder.
pub(crate) fn absolute(path: &std::path::Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_and_quotes_is_one_word_for_a_shell() {
        for path in ["/usr/bin/tollway", "/srv/ann's files/a b/tollway"] {
            let word = quoted(path.as_ref());
            let echo = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {word}")])
                .output();
            assert_eq!(String::from_utf8(echo.unwrap().stdout).unwrap(), path);
        }
        assert_eq!(quoted("/usr/bin/tollway".as_ref()), "/usr/bin/tollway");
    }
}
