//! `sharemesh models`: fetch, list and remove; works without a running node.

use clap::Subcommand;

use super::terminal::{Terminal, size, table};
use super::{Global, signal};
use crate::api::views::ServedModelView;
use crate::exit::{Failure, FailureKind};
use crate::models::{ModelFile, ModelView, Models};

#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// Fetch a model of the catalogue, or register a GGUF file of yours
    #[command(
        after_help = "Examples:\n  sharemesh models pull smollm2-135m\n  sharemesh models pull ./my-model.gguf"
    )]
    Pull {
        /// Name in the catalogue, or path of a file
        name: String,
    },
    /// List the catalogue and your files
    #[command(after_help = "Example:\n  sharemesh models ls --json")]
    Ls,
    /// Delete a fetched model, or forget a registered file
    #[command(after_help = "Example:\n  sharemesh models rm smollm2-135m")]
    Rm {
        /// Its name
        name: String,
    },
}

pub(super) async fn run(command: ModelsCommand, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let models = Models::open()?;
    match command {
        ModelsCommand::Pull { name } => {
            let file = pull(&models, &name, terminal).await?;
            Ok(terminal.show(&view_of(&models, &file)?, |view| {
                format!("{} is in {}", view.name, file.path.display())
            })?)
        }
        ModelsCommand::Ls => list(&models, global, terminal).await,
        ModelsCommand::Rm { name } => {
            let done = models.remove(&name)?;
            terminal.message(&done);
            if terminal.is_json() {
                terminal.object(&serde_json::json!({ "removed": name, "detail": done }))?;
            }
            Ok(())
        }
    }
}

/// Fetches with a bar; Ctrl-C ends it and leaves nothing half done.
pub(crate) async fn pull(models: &Models, name: &str, terminal: &Terminal) -> Result<ModelFile, Failure> {
    let bar = terminal.bar(name);
    let show = |progress| bar.step(&progress);
    tokio::select! {
        pulled = models.pull(name, &show) => pulled,
        () = signal::interrupted() => {
            Err(Failure::new(FailureKind::Cancelled, "interrupted: nothing was kept of the download"))
        }
    }
}

async fn list(models: &Models, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let mut views = models.list()?;
    // A node that does not run serves nothing, and that is no error here.
    if let Ok(client) = global.client()
        && let Ok(served) = client.get::<Vec<ServedModelView>>("models").await
    {
        for view in &mut views {
            view.serving =
                served.iter().find(|model| model.name == view.name).map(|model| model.state.clone());
        }
    }
    terminal.show(&views, |views| {
        let rows: Vec<_> = views.iter().map(row).collect();
        table(&["NAME", "HERE", "SERVED", "SIZE", "LICENCE", "ARCHITECTURE", "CONTEXT", "ABOUT"], &rows)
    })?;
    Ok(())
}

fn row(view: &ModelView) -> Vec<String> {
    let context = if view.context == 0 { "?".to_owned() } else { view.context.to_string() };
    vec![
        view.name.clone(),
        if view.present { "yes" } else { "no" }.to_owned(),
        view.serving.clone().unwrap_or_else(|| "-".to_owned()),
        size(view.size),
        view.licence.clone(),
        view.architecture.clone(),
        context,
        view.about.clone(),
    ]
}

fn view_of(models: &Models, file: &ModelFile) -> Result<ModelView, Failure> {
    let found = models.list()?.into_iter().find(|view| view.name == file.name);
    found.ok_or_else(|| Failure::internal(format!("`{}` is not listed", file.name)))
}
