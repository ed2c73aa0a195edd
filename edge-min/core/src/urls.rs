//! Which of the URLs that a node knows is used for what.

/// The URLs that a node knows.
#[derive(Clone, Copy, Debug)]
pub struct Urls<'a> {
    /// Of the config: moving the cloud is a line there.
    pub config: Option<&'a str>,
    /// Of the cloud that was joined; empty in an identity that does not say it.
    pub joined: &'a str,
    /// Of the external broker that the join named.
    pub broker: Option<&'a str>,
}

impl<'a> Urls<'a> {
    /// Where the link goes: to the broker that the join named, else to the cloud that was joined;
    /// another one in the config moves it.
    #[must_use]
    pub fn link(self) -> &'a str {
        let moved = self
            .config
            .filter(|url| *url != self.joined && !is_enrolment(url));
        moved.or(self.broker).unwrap_or(self.joined)
    }

    /// Where the certificate is renewed: at the cloud that was joined, or that the config names.
    /// Behind a broker another `mqtts://` moves the link only.
    #[must_use]
    pub fn renewal(self) -> &'a str {
        let named = self
            .config
            .filter(|url| self.broker.is_none() || is_enrolment(url));
        named.unwrap_or(self.joined)
    }
}

/// Whether it is an URL of enrolment alone.
fn is_enrolment(url: &str) -> bool {
    url.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_moves_the_link_and_https_the_enrolment_only() {
        let (cloud, new, broker) = ("mqtts://cloud", "mqtts://new", "mqtts://broker");
        let (https, https_new) = ("https://cloud", "https://new");
        for (config, joined, of, link, renewal) in [
            (None, cloud, None, cloud, cloud),
            (Some(cloud), cloud, None, cloud, cloud),
            (Some(new), cloud, None, new, new),
            (None, https, Some(broker), broker, https),
            (Some(https), https, Some(broker), broker, https),
            (Some(https_new), https, Some(broker), broker, https_new),
            (Some(new), https, Some(broker), new, https),
        ] {
            let urls = Urls {
                config,
                joined,
                broker: of,
            };
            assert_eq!((urls.link(), urls.renewal()), (link, renewal), "{urls:?}");
        }
    }
}
