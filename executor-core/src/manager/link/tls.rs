//! Who a server is, and whom a client trusts: certificates, private keys, fingerprints.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex},
};

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{
        CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, TrustAnchor, UnixTime,
        pem::PemObject,
    },
    server::NoServerSessionStorage,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::os::std_or_model::lock;

/// The name in certificates that [`Identity::generate`] makes.
const GENERATED_NAME: &str = "executor-manager";

crate::debug::debug_is_display!(IdentityError, FingerprintError);

/// Why something is no identity, or nothing that can be trusted.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(String);

/// Who a server is: its certificate, and the private key that belongs to it. Needs the feature
/// `tls`.
///
/// A server that is started again with the same identity has the same [`Fingerprint`], so its
/// clients need not be told anything.
///
/// ```
/// use executor::manager::Identity;
///
/// let identity = Identity::generate()?;
/// let (certificates, key) = identity.to_pem();
/// let again = Identity::from_pem(certificates.as_bytes(), key.as_bytes())?;
/// assert_eq!(again.fingerprint(), identity.fingerprint());
/// # Ok::<_, executor::manager::IdentityError>(())
/// ```
pub struct Identity {
    /// The own certificate, then those of who has issued it.
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// An identity on its way to the process of the server.
#[derive(Serialize, Deserialize)]
pub(crate) struct IdentityParts {
    certificates: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl fmt::Debug for IdentityParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityParts(…)")
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Identity { certificates: self.certificates.clone(), key: self.key.clone_key() }
    }
}

impl fmt::Debug for Identity {
    /// Writes the fingerprint, and nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.fingerprint()).finish()
    }
}

impl Identity {
    /// Makes an identity: a new private key, and a certificate that it has signed itself.
    ///
    /// Nobody vouches for it, so clients have to be given its [`fingerprint`](Self::fingerprint).
    /// The name in the certificate is `executor-manager`, and it does not expire.
    ///
    /// # Errors
    /// If the system has no random numbers yet.
    pub fn generate() -> Result<Self, IdentityError> {
        let failed = |error: rcgen::Error| IdentityError(format!("no certificate: {error}"));
        let made = rcgen::generate_simple_self_signed([GENERATED_NAME.to_owned()]);
        let rcgen::CertifiedKey { cert, signing_key } = made.map_err(failed)?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der())
            .map_err(|error| IdentityError(error.to_owned()))?;
        Ok(Identity { certificates: vec![cert.der().clone()], key })
    }

    /// Reads an identity from the text of PEM files: the certificate, with those of who has issued
    /// it behind it, and the private key.
    ///
    /// # Errors
    /// If there is no certificate or no key in the text, or the key does not belong to the
    /// certificate.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let certificates = certificates_of(certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| IdentityError(format!("no private key: {error}")))?;
        Self::checked(certificates, key)
    }

    /// Returns the certificates and the private key as the text of two PEM files. The second one is
    /// a secret.
    pub fn to_pem(&self) -> (String, String) {
        let certificates: Vec<String> =
            self.certificates.iter().map(|one| pem("CERTIFICATE", one)).collect();
        let label = match &self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        (certificates.concat(), pem(label, self.key.secret_der()))
    }

    /// Returns the fingerprint, which clients can [trust](Trust::fingerprint). It is no secret, but
    /// has to reach the clients in a way that nobody can change.
    pub fn fingerprint(&self) -> Fingerprint {
        // There is a certificate: both constructors check it.
        self.certificates.first().map_or(Fingerprint([0; 32]), Fingerprint::of)
    }

    pub(crate) fn to_parts(&self) -> IdentityParts {
        IdentityParts {
            certificates: self.certificates.iter().map(|one| one.to_vec()).collect(),
            key: self.key.secret_der().to_vec(),
        }
    }

    pub(crate) fn from_parts(parts: IdentityParts) -> Result<Self, IdentityError> {
        let key =
            PrivateKeyDer::try_from(parts.key).map_err(|error| IdentityError(error.to_owned()))?;
        let certificates = parts.certificates.into_iter().map(CertificateDer::from).collect();
        Self::checked(certificates, key)
    }

    fn checked(
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        if certificates.is_empty() {
            return Err(IdentityError("there is no certificate".to_owned()));
        }
        let identity = Identity { certificates, key };
        TlsServer::new(&identity)?;
        Ok(identity)
    }
}

fn certificates_of(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates =
        certificates.map_err(|error| IdentityError(format!("no certificate: {error}")))?;
    match certificates.is_empty() {
        true => Err(IdentityError("there is no certificate in the text".to_owned())),
        false => Ok(certificates),
    }
}

/// Returns the PEM text of some bytes.
pub(super) fn pem(label: &str, bytes: &[u8]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(label, bytes), lines)
}

/// The SHA-256 of a server's certificate. Who knows it can recognize the server. Needs the feature
/// `tls`.
///
/// Its text form is hexadecimal. Colons between the digits are allowed, as `openssl` writes them.
///
/// ```
/// use executor::manager::{Fingerprint, Identity};
///
/// let fingerprint = Identity::generate()?.fingerprint();
/// assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
/// assert!("12:34".parse::<Fingerprint>().is_err());
/// # Ok::<_, executor::manager::IdentityError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Makes a fingerprint of its bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Fingerprint(bytes)
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of(certificate: &CertificateDer<'_>) -> Self {
        Fingerprint(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The error for text that is no fingerprint.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits, which may have colons between them")]
pub struct FingerprintError(());

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits = text.bytes().filter(|byte| *byte != b':');
        let digits: Option<Vec<u8>> =
            digits.map(|digit| Some(char::from(digit).to_digit(16)? as u8)).collect();
        let digits = digits.ok_or(FingerprintError(()))?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) if rest.is_empty() => Ok(Fingerprint(bytes)),
            _ => Err(FingerprintError(())),
        }
    }
}

/// A trust on its way to another process: a fingerprint, or who issues certificates (subject, key
/// and the constraints on names, of each) and a name.
#[derive(Serialize, Deserialize)]
pub(crate) enum TrustParts {
    Fingerprint([u8; 32]),
    Certificates { roots: Vec<AnchorParts>, name: String },
}

type AnchorParts = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// Which server a client trusts. Needs the feature `tls`.
///
/// The key challenge alone would not do: it proves that the other side knows the key, and not who
/// it is. Whoever has the key could play the server.
#[derive(Clone, Debug)]
pub struct Trust(Trusted);

#[derive(Clone)]
enum Trusted {
    Fingerprint(Fingerprint),
    Certificates { roots: Arc<RootCertStore>, name: ServerName<'static> },
}

impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trusted::Fingerprint(fingerprint) => fingerprint.fmt(f),
            Trusted::Certificates { name, .. } => write!(f, "certificates for {name:?}"),
        }
    }
}

impl Trust {
    /// Trusts the server with this fingerprint, and no other. The name and the dates in its
    /// certificate do not matter.
    pub fn fingerprint(fingerprint: Fingerprint) -> Self {
        Trust(Trusted::Fingerprint(fingerprint))
    }

    /// Trusts every server whose certificate is for `name` and was issued by one of these, which
    /// are the text of a PEM file. A certificate that a server has signed itself can be one of
    /// them, unless it says that it issues others (`CA:TRUE`, as `openssl req -x509` writes it):
    /// trust the [`fingerprint`](Self::fingerprint) of such a one.
    ///
    /// # Errors
    /// If there is no certificate in the text, or the name is none.
    pub fn certificates(pem: &[u8], name: &str) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates_of(pem)? {
            roots
                .add(certificate)
                .map_err(|error| IdentityError(format!("a certificate cannot be read: {error}")))?;
        }
        let name = ServerName::try_from(name.to_owned()).map_err(|InvalidDnsNameError| {
            IdentityError(format!("`{name}` is no name of a server"))
        })?;
        Ok(Trust(Trusted::Certificates { roots: Arc::new(roots), name }))
    }
}

impl Trust {
    pub(crate) fn to_parts(&self) -> TrustParts {
        match &self.0 {
            Trusted::Fingerprint(Fingerprint(bytes)) => TrustParts::Fingerprint(*bytes),
            Trusted::Certificates { roots, name } => {
                let parts = |anchor: &TrustAnchor<'_>| {
                    let constraints = anchor.name_constraints.as_ref();
                    (
                        anchor.subject.to_vec(),
                        anchor.subject_public_key_info.to_vec(),
                        constraints.map(|constraints| constraints.to_vec()),
                    )
                };
                let roots = roots.roots.iter().map(parts).collect();
                TrustParts::Certificates { roots, name: name.to_str().into_owned() }
            }
        }
    }

    pub(crate) fn from_parts(parts: TrustParts) -> Result<Self, IdentityError> {
        let (roots, name) = match parts {
            TrustParts::Fingerprint(bytes) => return Ok(Trust::fingerprint(Fingerprint(bytes))),
            TrustParts::Certificates { roots, name } => (roots, name),
        };
        let anchor = |(subject, key, constraints): AnchorParts| TrustAnchor {
            subject: subject.into(),
            subject_public_key_info: key.into(),
            name_constraints: constraints.map(Into::into),
        };
        let roots = RootCertStore { roots: roots.into_iter().map(anchor).collect() };
        let name = ServerName::try_from(name).map_err(|InvalidDnsNameError| {
            IdentityError("the name of a server came as something else".to_owned())
        })?;
        Ok(Trust(Trusted::Certificates { roots: Arc::new(roots), name }))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What a server needs for its side of TLS.
#[derive(Clone, Debug)]
pub(crate) struct TlsServer(pub(super) Arc<ServerConfig>);

impl TlsServer {
    pub(crate) fn new(identity: &Identity) -> Result<Self, IdentityError> {
        let failed = |error: Error| IdentityError(format!("the identity cannot be used: {error}"));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_no_client_auth()
            .with_single_cert(identity.certificates.clone(), identity.key.clone_key())
            .map_err(failed)?;
        // A connection stays for long, so nothing is gained by resuming one.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsServer(Arc::new(config)))
    }
}

/// What a client needs for its side of TLS.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient {
    config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    pinned: Option<Fingerprint>,
}

impl TlsClient {
    pub(crate) fn new(trust: &Trust) -> Result<Self, IdentityError> {
        let failed = |error: String| IdentityError(format!("nothing to trust: {error}"));
        let generated = ServerName::try_from(GENERATED_NAME).map_err(|e| failed(e.to_string()))?;
        let (verifier, name, pinned): (Arc<dyn ServerCertVerifier>, _, _) = match &trust.0 {
            Trusted::Fingerprint(fingerprint) => {
                (Arc::new(Pinned::new(*fingerprint)), generated, Some(*fingerprint))
            }
            Trusted::Certificates { roots, name } => {
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider());
                let verifier = verifier.build().map_err(|error| failed(error.to_string()))?;
                (verifier, name.clone(), None)
            }
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(TlsClient { config: Arc::new(config), name, pinned })
    }

    /// Returns the configuration for one meeting, and what it finds out about the server if a
    /// fingerprint is pinned.
    pub(super) fn for_one_meeting(&self) -> (Arc<ClientConfig>, Option<Arc<Pinned>>) {
        let Some(fingerprint) = self.pinned else { return (Arc::clone(&self.config), None) };
        let pinned = Arc::new(Pinned::new(fingerprint));
        let mut config = ClientConfig::clone(&self.config);
        config.dangerous().set_certificate_verifier(Arc::clone(&pinned) as _);
        (Arc::new(config), Some(pinned))
    }
}

/// Accepts the one server whose certificate has this fingerprint.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) expected: Fingerprint,
    provider: Arc<CryptoProvider>,
    /// The fingerprint of a server that was refused, for the error.
    pub(super) refused: Mutex<Option<Fingerprint>>,
}

impl Pinned {
    fn new(expected: Fingerprint) -> Self {
        Pinned { expected, provider: provider(), refused: Mutex::default() }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = Fingerprint::of(end_entity);
        if found == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        *lock(&self.refused) = Some(found);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The server has the private key of the certificate whose fingerprint it is.
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_the_same_after_its_pem_text_and_after_its_way_to_the_server() {
        let identity = Identity::generate().unwrap();
        let (certificates, key) = identity.to_pem();
        let read = Identity::from_pem(certificates.as_bytes(), key.as_bytes()).unwrap();
        let sent = Identity::from_parts(identity.to_parts()).unwrap();
        for same in [read, sent] {
            assert_eq!(same.certificates, identity.certificates);
            assert_eq!(same.key, identity.key);
        }
        assert!(!format!("{identity:?} {:?}", identity.to_parts()).contains("PRIVATE"));
    }

    #[test]
    fn what_is_no_identity_is_an_error_that_says_why() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let (certificates, key) = one.to_pem();
        let error = |certificates: &str, key: &str| {
            Identity::from_pem(certificates.as_bytes(), key.as_bytes()).unwrap_err().to_string()
        };
        assert!(error(&certificates, &other.to_pem().1).contains("cannot be used"));
        assert!(error("", &key).contains("no certificate"));
        assert!(error(&key, &key).contains("no certificate"));
        assert!(error(&certificates, "garbage").contains("no private key"));
        assert!(error(&certificates, &certificates).contains("no private key"));
        assert!(Trust::certificates(b"", "name").is_err());
        assert!(Trust::certificates(certificates.as_bytes(), "no name").is_err());
    }

    #[test]
    fn pem_text_of_every_length_is_read_again() {
        for len in 0..200_u8 {
            let bytes: Vec<u8> = (0..len).collect();
            let text = pem("CERTIFICATE", &bytes);
            let read = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            assert_eq!(read.to_vec(), bytes);
            assert!(text.lines().all(|line| line.len() <= 64));
        }
    }

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let fingerprint = Fingerprint(std::array::from_fn(|at| at as u8 * 7));
        let text = fingerprint.to_string();
        assert_eq!(text.parse(), Ok(fingerprint));
        let pairs: Vec<String> =
            text.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).into()).collect();
        assert_eq!(pairs.join(":").to_uppercase().parse(), Ok(fingerprint));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace('0', "g")] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(FingerprintError(())), "{wrong}");
        }
    }
}
