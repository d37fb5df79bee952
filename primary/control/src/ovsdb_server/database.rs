//! The database file: made when missing, converted when its schema is another.

use super::error::SupervisorError;
use super::programs::{complaint, run};
use crate::unixctl::lock_holder;
use std::fs;
use std::path::{Path, PathBuf};

/// A database file and the schema it should have.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) path: PathBuf,
    pub(super) schema: PathBuf,
    pub(super) tool: PathBuf,
}

impl Database {
    /// Brings the file into the state in which a server can open it.
    pub(super) fn prepare(&self) -> Result<(), SupervisorError> {
        if let Some(pid) = lock_holder(&self.lock_path()) {
            return Err(SupervisorError::InUse {
                path: self.path.clone(),
                pid,
            });
        }
        if !self.path.exists() {
            return self.create();
        }
        if self.needs_conversion()? {
            self.convert()
        } else {
            Ok(())
        }
    }

    /// Where OVS's programs lock the file.
    fn lock_path(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.~lock~"))
    }

    /// Under another name first: a crash leaves no half of a database behind.
    fn create(&self) -> Result<(), SupervisorError> {
        let failed = |details: String| SupervisorError::Create {
            path: self.path.clone(),
            details,
        };
        let new = Database {
            path: self.path.with_extension("new"),
            ..self.clone()
        };
        let _ = fs::remove_file(&new.path);
        let output = run(
            &self.tool,
            &["create".as_ref(), new.path.as_os_str(), self.schema.as_os_str()],
        )?;
        let _ = fs::remove_file(new.lock_path());
        if !output.status.success() {
            let _ = fs::remove_file(&new.path);
            return Err(failed(complaint("ovsdb-tool", &output.stderr)));
        }
        fs::rename(&new.path, &self.path).map_err(|e| failed(e.to_string()))?;
        log::info!("created database {}", self.path.display());
        Ok(())
    }

    fn needs_conversion(&self) -> Result<bool, SupervisorError> {
        let args = [
            "needs-conversion".as_ref(),
            self.path.as_os_str(),
            self.schema.as_os_str(),
        ];
        let output = run(&self.tool, &args)?;
        if !output.status.success() {
            let path = self.path.clone();
            let details = complaint("ovsdb-tool", &output.stderr);
            // It may be about the schema, or about a file that can't be read, whatever is in it.
            let damaged = details.contains(&*path.to_string_lossy()) && fs::read(&path).is_ok();
            return Err(if damaged {
                SupervisorError::Damaged { path, details }
            } else {
                let schema = self.schema.clone();
                SupervisorError::Compare {
                    path,
                    schema,
                    details,
                }
            });
        }
        Ok(output.stdout.starts_with(b"yes"))
    }

    /// Keeps a copy of the old file beside it.
    fn convert(&self) -> Result<(), SupervisorError> {
        let failed = |details: String| SupervisorError::Convert {
            path: self.path.clone(),
            schema: self.schema.clone(),
            details,
        };
        let backup = backup_path(&self.path, &self.version());
        if let Err(e) = fs::copy(&self.path, &backup) {
            let _ = fs::remove_file(&backup);
            return Err(failed(format!("copying to {}: {e}", backup.display())));
        }
        let args = ["convert".as_ref(), self.path.as_os_str(), self.schema.as_os_str()];
        let output = run(&self.tool, &args)?;
        if !output.status.success() {
            let _ = fs::remove_file(&backup);
            return Err(failed(complaint("ovsdb-tool", &output.stderr)));
        }
        let (path, schema) = (self.path.display(), self.schema.display());
        log::info!(
            "converted database {path} to {schema}; the old one is {}",
            backup.display()
        );
        Ok(())
    }

    /// The version of the file's schema, as far as it can be told.
    fn version(&self) -> String {
        let output = run(&self.tool, &["db-version".as_ref(), self.path.as_os_str()]);
        let text = output
            .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
            .unwrap_or_default();
        if text.is_empty() { "old".into() } else { text }
    }

    /// The version of the schema we want, for `Open_vSwitch.db_version`.
    pub(super) fn schema_version(&self) -> Option<String> {
        let output = run(&self.tool, &["schema-version".as_ref(), self.schema.as_os_str()]).ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }
}

/// A name that no file has yet.
fn backup_path(path: &Path, version: &str) -> PathBuf {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let candidates = (0..).map(|n| {
        if n == 0 {
            format!("{name}.backup{version}")
        } else {
            format!("{name}.backup{version}.{n}")
        }
    });
    let mut paths = candidates.map(|name| path.with_file_name(name));
    paths
        .find(|p| !p.exists())
        .unwrap_or_else(|| path.with_extension("backup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or it would pass for a backup.
    #[test]
    fn half_a_copy_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database {
            path: dir.path().join("conf.db"),
            schema: dir.path().join("schema"),
            tool: "/nonexistent/ovsdb-tool".into(),
        };
        // A file that can be opened and not read.
        std::os::unix::fs::symlink("/proc/self/mem", &database.path).unwrap();
        let error = database.convert().unwrap_err().to_string();
        assert!(error.contains("conf.db.backupold: "), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no backup");
    }
}
